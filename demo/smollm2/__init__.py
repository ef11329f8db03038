"""A pretrained model, SmolLM2-135M-Instruct, and what the demo corrects in it: data files, and the program that found them."""
