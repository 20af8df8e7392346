"""Speed and memory as ratios, measured side by side in one run against straightforward code."""
