"""HTTP/1.1: the transport, and the Open Inference Protocol over it. Imported only if the server has an HTTP port."""
