"""A stand-in for the KYB platform: sample database, application folder and admin service.

Nothing here is needed to back up or restore a real platform. It exists so that the demo and the
tests have something credible to work on.
"""
