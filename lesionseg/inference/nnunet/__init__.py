"""nnU-Net v2: its probability files become candidates, its model folders become bundles."""
