-- include: clock, notes
-- Check whether Redis accepts writes. The trial write is neither replicated nor persisted.
-- Only reads and notes.
-- ask: {}
-- Answers why it refuses them, '' if it accepts them.
local KEPT_MS = 60000
now_ms()
redis.set_repl(redis.REPL_NONE)
return (try(redis.call, 'SET', 'probe:write', '1', 'PX', KEPT_MS))
