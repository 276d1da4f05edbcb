"""Replacements in a vLLM engine or server: a plugin of vLLM that steers each request by itself, token by token, inside the compiled model.

The package is not called `vllm`, since a folder of that name on the path would be taken for vLLM itself.
"""
