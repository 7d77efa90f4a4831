"""atasks in a Django project: the extra `django`, and 'atasks.contrib.django' in INSTALLED_APPS.

The setting `ATASKS` says for each namespace where its calls go, the modules `tasks` and `atasks` of all apps are
imported, and whatever part of the project calls an atask first opens the connection.
"""
