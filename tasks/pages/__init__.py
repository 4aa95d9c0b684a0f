"""Pages as one self-contained HTML file: templates that escape everything, and the text and numbers in them."""
