@echo off & setlocal & if not defined BALANCER_URL set "BALANCER_URL=http://127.0.0.1:8000"
rem create-session.bat MODEL: prints "Session ID: N" of a new backend session. BALANCER_URL is where balancer is, BALANCER_TOKEN who asks.
curl -fsS -H "Authorization: Bearer %BALANCER_TOKEN%" -H "Accept: text/plain" -H "Content-Type: application/json" -d "{\"model\": \"%~1\"}" "%BALANCER_URL%/api/chat/session"
