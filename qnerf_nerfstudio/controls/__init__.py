"""Controls: from the 3D statement of an edit to the control images of every view, and where the edit may act."""
