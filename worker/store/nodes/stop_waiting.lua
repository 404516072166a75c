-- include: waits
-- A gateway waits for a node's next job no longer, so the next admission starts none for it.
-- Also when full.
-- ask: {node, wait: its ID}
-- Answers 1.
local ask = cjson.decode(ARGV[1])
forget_wait(ask.node, ask.wait)
return 1
