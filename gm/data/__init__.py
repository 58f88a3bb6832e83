"""What training shows the model: folders of images, prompt templates, and which of them each step takes."""
