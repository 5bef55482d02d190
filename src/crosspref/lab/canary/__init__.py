"""The canary: a verifiable trait, taught to a real model in English."""
