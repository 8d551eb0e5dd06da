"""A predictor that learns from all recorded measurements. Needs scikit-learn (extra ``learn``); nothing else imports this package at the top."""
