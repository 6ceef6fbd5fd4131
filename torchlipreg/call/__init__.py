"""One call of a penalty: its settings, its memory, where its pairs live, and the step that moves and reduces them."""
