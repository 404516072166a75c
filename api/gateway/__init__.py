"""The gateway between the nodes and the cell's store. It checks each call of a node."""
