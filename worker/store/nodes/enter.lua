-- Run a script for a node. A connection can outlive the credential with which it was opened, because a gateway looks
-- for ended ones only twice a second: nothing more is done for it.
-- Only reads.
-- ask: {credential: the key of the node's, if it needs one, and what the script takes}
-- Answers {'credential_ended'}, or what the script answers.
local ask = cjson.decode(ARGV[1])
if ask.credential and redis.call('EXISTS', ask.credential) == 0 then return {'credential_ended'} end
return body(ask)
