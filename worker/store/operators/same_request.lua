-- include: idempotency
-- Remember a request by its key, before its parts are done one by one.
-- ask: {idempotency (see `replay`)}
-- Answers {'admitted'} or {'refused', code}.
local ask = cjson.decode(ARGV[1])
return replay(ask) or remember(ask, {'admitted'})
