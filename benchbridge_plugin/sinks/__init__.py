"""Where measurements go: the host's service object, or the predictive API over HTTP (through a socket or, inside one application, through WSGI)."""
