"""What does the gateway itself answer over HTTP?"""
