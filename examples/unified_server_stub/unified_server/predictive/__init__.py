"""The Predictive Performance API: measurements in, predictions out, over HTTP and as an object in the same process."""
