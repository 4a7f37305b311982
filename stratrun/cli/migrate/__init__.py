"""Commands that read what other frameworks have written."""
