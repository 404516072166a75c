-- include: clock, records
-- Who holds the lease of a node instead of us. ARGV: node, owner, machine. Answers {0} or {milliseconds left, who}.
-- Changes nothing. One that has run out, or is held from the same machine as ours, nobody holds.
local node = read('node:' .. ARGV[1]) or {}
local left = (tonumber(node.lease_until_ms) or 0) - now_ms()
if left <= 0 or node.owner == ARGV[2] or node.machine == ARGV[3] then return {0} end
return {left, node.who}
