"""Who is calling, for which tenant, and what may they do?"""
