"""The GRR-CoCa core: images and token ids to features, logits and captions. Depends only on torch.

Dimensions, everywhere in this package:

    B  batch            C  channel            H, W  pixel
    N  image token      Q  pooled query       L     text token
    D  width            h  head               k     head width
    E  joint embedding  V  vocabulary         T     target tokens of a whole batch
    R  decoded row (an image times its beams or samples)
"""
