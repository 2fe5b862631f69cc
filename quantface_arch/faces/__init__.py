"""From a photograph to aligned faces and back: detection, alignment, pasting."""
