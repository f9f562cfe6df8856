"""Speed and memory, measured side by side with what is replaced; see README.md."""
