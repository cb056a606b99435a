"""Networks: configuration, modulations, block and stage, FocalNet, the published variants."""
