-- include: clock, records
-- Who else holds the lease of a node. Changes nothing. A lease that has run out, or is held from the asking machine,
-- counts as free.
-- Only reads.
-- ask: {node, owner, machine}
-- Answers {0} where nobody else holds it, else {milliseconds left, who}.
local ask = cjson.decode(ARGV[1])
local node = read('node:' .. ask.node) or {}
local left = (number(node.lease_until_ms) or 0) - now_ms()
if left <= 0 or node.owner == ask.owner or node.machine == ask.machine then return {0} end
return {left, node.who}
