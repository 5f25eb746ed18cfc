"""Pictures and captions in, batches out. Knows no model and no radiology: `medical` plugs in through `base`."""
