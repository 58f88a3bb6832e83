"""What training shows the model: folders of pictures, prompt templates, and which of them each step takes."""
