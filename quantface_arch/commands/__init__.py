"""The commands of ``quantface``; scripts/ and inference/ start them in a checkout."""
