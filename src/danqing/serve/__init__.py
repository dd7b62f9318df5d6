"""The studio: a queue that loses nothing, a gallery, HTTP APIs and a web page. It needs the extra [serve]."""
