# curl and grep on a model whose upstream keeps the conversation, the way people write it: each line says what came of it.
set -eu
chat() { curl -sS "$PROXY_URL/v1/chat/completions" -H "Authorization: Bearer $CLIENT_TOKEN" "$@"; }
body() { printf '{"model":"%s","messages":[{"role":"user","content":"hello"}]%s}' "$CLIENT_MODEL" "${1:-}"; }

id=$(curl -sS "$PROXY_URL/api/chat/session" -H "Authorization: Bearer $CLIENT_TOKEN" -d "{\"model\":\"$CLIENT_MODEL\"}" \
  | grep -o '"id":[0-9]*' | head -n 1 | cut -d : -f 2)
echo "made $id"
session_of() { grep -i '^x-session-id:' | tr -d '\r' | cut -d ' ' -f 2; }
echo "header $(chat -D - -o /dev/null -H "x-session-id: $id" -d "$(body)" | session_of)"
echo "query $(curl -sS -D - -o /dev/null "$PROXY_URL/v1/chat/completions?session_id=$id" -H "api-key: $CLIENT_TOKEN" -d "$(body)" | session_of)"
echo "body $(chat -D - -o /dev/null -d "$(body ",\"metadata\":{\"sessionId\":$id}")" | session_of)"
echo "said $(chat -H "x-session-id: $id" -d "$(body)" | grep -o 'You said: hello')"
echo "stream $(chat -N -H "x-session-id: $id" -d "$(body ',"stream":true')" | tail -n 2 | head -n 1)"
echo "gone $(chat -H 'x-session-id: 7' -d "$(body)" | grep -o '对话不存在: 7')"
