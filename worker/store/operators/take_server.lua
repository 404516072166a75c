-- include: clock, records, idempotency
-- Record who repairs a stranded server, or that nobody does. The record ends when the server is no longer stranded.
-- ask: {server, by: '' for nobody, idempotency (see `replay`)}
-- Answers {'admitted'} or {'refused', code}.
local ask = cjson.decode(ARGV[1])

local function take_it()
  local key = 'server:' .. ask.server
  local server = read(key)
  if not server then return {'refused', 'server_not_found'} end
  if not server.stranded then return {'refused', 'server_not_stranded'} end
  if ask.by == '' then
    redis.call('HDEL', key, 'taken_by', 'taken_ms')
  else
    redis.call('HSET', key, 'taken_by', ask.by, 'taken_ms', now_ms())
  end
  return {'admitted'}
end

return replay(ask) or remember(ask, take_it())
