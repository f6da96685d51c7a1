#!/bin/sh
# create-session.sh MODEL: prints "Session ID: N" of a new backend session. BALANCER_URL is where balancer is, BALANCER_TOKEN who asks.
printf 'Authorization: Bearer %s' "$BALANCER_TOKEN" | curl -fsS -H @- -H 'Accept: text/plain' -H 'Content-Type: application/json' -d "{\"model\": \"${1:?which model?}\"}" "${BALANCER_URL:-http://127.0.0.1:8000}/api/chat/session"
