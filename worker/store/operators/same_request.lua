-- include: idempotency
-- Record a bulk request under its key, before its parts are executed one by one.
-- ask: {idempotency (see `replay`)}
-- Answers {'admitted'} or {'refused', code}.
local ask = cjson.decode(ARGV[1])
return replay(ask) or remember(ask, {'admitted'})
