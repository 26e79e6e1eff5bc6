"""An empty module: nnU-Net imports SimpleITK beside the reader that it then uses, nibabel's."""
