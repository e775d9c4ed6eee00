"""Operators that compute what torch's do, faster, more exactly or in the same bits each time; and torch's switches.

They know tensors and modules alone. Networks need not know them: `convolution` takes the place of torch's convolutions
while a forward pass is differentiated twice, `layout` prepares a finished network for its device.
"""
