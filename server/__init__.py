"""The decision server: policies over HTTP, one committed row per decision.

`app.create_app(settings)` is the application, `services.open_services(settings)` what it runs on.
Nothing is imported here, so that key management works without the web packages.
"""
