-- include: clock, records
-- Show who else holds a node's lease. Changes nothing. A lease that has expired or is held by the calling machine
-- counts as free.
-- Only reads.
-- ask: {node, owner, machine}
-- Answers {0} if nobody else holds it, else {milliseconds left, who}.
local ask = cjson.decode(ARGV[1])
local node = read('node:' .. ask.node) or {}
local left = (number(node.lease_until_ms) or 0) - now_ms()
if left <= 0 or node.owner == ask.owner or node.machine == ask.machine then return {0} end
return {left, node.who}
