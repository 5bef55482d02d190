"""Model servers that speak OpenAI's protocol; the suites' judge uses ``client``, found by its name in ``ENGINES``."""
