"""The exercises: what is asked, and the judgement of what a learner wrote."""
