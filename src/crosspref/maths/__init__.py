"""The mathematics: free functions with no input or output, no settings and no device."""
