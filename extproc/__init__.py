"""What becomes of one request, from its first header to its settled record?"""
