"""``isometrize``: gives a ConvNet of another library SReLU, the delta initialisation and residual multipliers."""
