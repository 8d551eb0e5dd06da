"""What other tools are given to do, each as a script of its own that runs in an environment of its own and knows nothing of benchbridge."""
