"""The programs on the client's host."""


class Clients:
    def __init__(self, lab, httpd, site, tally, wire):
        self.transcript = []

    def end(self):
        pass
