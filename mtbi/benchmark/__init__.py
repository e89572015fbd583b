"""What a speech LLM can do: `mtbi evaluate`.

The way of the data: shards or a JSONL file → dialogues → answers under several conditions → cells of numbers → a report.
"""
