"""The mathematics: free functions without input, output, settings or device. They import nothing else of crosspref."""
