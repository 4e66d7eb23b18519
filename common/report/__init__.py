"""Results for people: text, CSV, the page with its charts, pictures and videos."""
