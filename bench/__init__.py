"""Speed and cost as tables: `python -m bench model | data | audit`."""
