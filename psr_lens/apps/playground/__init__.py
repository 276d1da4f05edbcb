"""The playground: prompt and replacements side by side, live, as a notebook widget or as a page served to this machine's browser."""
