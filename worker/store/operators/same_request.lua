-- include: idempotency
-- Keep what was asked under a request's key. ARGV[1]: JSON {idempotency{...}}. Answers {'admitted'} or {'refused', code}.
local ask = cjson.decode(ARGV[1])
return replay(ask) or remember(ask, {'admitted'})
